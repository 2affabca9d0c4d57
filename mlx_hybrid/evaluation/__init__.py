"""What the model is worth: accuracy, calibration, parity, robustness, with intervals."""
