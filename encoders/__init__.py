"""The networks: VideoMamba, BERT, the CLIP teacher, masks and official checkpoint keys. No input or output."""
