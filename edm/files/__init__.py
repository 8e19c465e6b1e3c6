"""Files written atomically, hashed, locked, resumed, fetched."""
