"""Each job, composed once."""
