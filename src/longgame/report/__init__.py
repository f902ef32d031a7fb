"""Tables, figures and the HTML page, all made from the run's tidy records."""
