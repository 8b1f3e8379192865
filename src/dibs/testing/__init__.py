"""What tests the stores and the protocol; free of pytest, so that `dibs doctor` can use it on your machines."""
