"""From the file of a study to a list of validated, hashed runs; nothing is started here."""
