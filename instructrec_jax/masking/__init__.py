"""Personal data in texts: found, replaced by placeholders (`<EMAIL_1>`) and put back."""
