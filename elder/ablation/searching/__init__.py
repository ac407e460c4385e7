"""Parameters chosen from declared ranges, by trials that are runs like any other."""
