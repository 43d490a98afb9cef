"""One module per data format; `reca.data.formats` opens them by name."""
