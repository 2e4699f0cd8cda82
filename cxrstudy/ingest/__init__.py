"""Make an ingest folder, a card and a preset of a hospital's archive and its tables."""
