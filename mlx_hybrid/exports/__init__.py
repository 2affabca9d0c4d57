"""An adapter as PEFT, LoRA, OFT, merged or mlx-lm files, checked, and the way back in."""
