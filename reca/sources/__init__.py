"""What is downloaded, from where, and under which sha256."""
