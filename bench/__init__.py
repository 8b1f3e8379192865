"""dibs beside what people use today, as ratios to a floor of the same run.  `python -m bench`."""
