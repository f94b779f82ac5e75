"""What post-training quantisation learns from calibration inputs, and what it does with it."""
