"""Models a user loads: video-text, recognition, open_clip's, and the official checkpoints of both kinds."""
