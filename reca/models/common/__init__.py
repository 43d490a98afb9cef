"""What three families share."""
