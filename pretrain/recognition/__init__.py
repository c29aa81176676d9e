"""Fine-tuning of VideoMamba on images or videos with labels, and its multi-view test."""
