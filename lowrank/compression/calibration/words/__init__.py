"""What calibration knows of tables of words."""
