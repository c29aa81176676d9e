"""The verbs of the command line: the module that does each, imported when it is called, and what it does in words."""

from __future__ import annotations

VERBS = {
    "pretrain": ("vtr.launch", "train a video-text model on a corpus, all stages in order"),
    "finetune": ("vtr.launch", "fine-tune on a recognition task or for retrieval"),
    "eval": ("vtr.launch", "evaluate a model zero-shot on benchmarks"),
    "shards build": ("vtr.data.commands", "videos or images and captions into WebDataset shards"),
    "shards verify": ("vtr.data.commands", "check shards: counts, captions, media"),
    "shards group": ("vtr.library.grouping", "shards anew, look-alikes side by side, for harder batches"),
    "index build": ("vtr.library.commands", "make a search library of folders of videos"),
    "index add": ("vtr.library.commands", "add files to a library"),
    "index sync": ("vtr.library.commands", "bring a library up to date with its folders"),
    "index remove": ("vtr.library.commands", "forget videos of a library"),
    "index info": ("vtr.library.commands", "what a library holds, what could not be read"),
    "index verify": ("vtr.library.commands", "check that a library's files agree with each other"),
    "index compact": ("vtr.library.commands", "free the room of forgotten videos, mend the index"),
    "index export": ("vtr.library.commands", "a library's vectors and metadata as Parquet"),
    "index push": ("vtr.library.commands", "bring a collection on Milvus up to date with a library"),
    "embed": ("vtr.library.commands", "embed the samples of shards, for index build --from"),
    "search": ("vtr.library.commands", "find moments in words"),
    "serve": ("vtr.library.commands", "search a library in a browser, and a REST API"),
    "models": ("vtr.models.commands", "official checkpoints: list, describe, fetch"),
    "benchmarks": ("vtr.eval.commands", "evaluation protocols: list them"),
    "benchmarks check": ("vtr.eval.commands", "what of a benchmark is there, missing, broken"),
    "results": ("vtr.eval.commands", "table and plot of evaluation results"),
    "runs plot": ("vtr.pretrain.commands", "loss and retrieval curves of training runs as a PNG"),
    "export": ("vtr.pretrain.commands", "a training checkpoint as a model folder"),
    "completion": ("vtr.completion", "completion of verbs and flags for bash, zsh or fish"),
    "version": ("vtr.doctor", "the version"),
    "doctor": ("vtr.doctor", "what is installed, which kernel runs and why"),
    "demo": ("vtr.demo", "train a small search engine from nothing and query it"),
}
