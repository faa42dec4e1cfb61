"""The evening: from a stock model and calibration text to scores, a plan and a smaller stock model."""
