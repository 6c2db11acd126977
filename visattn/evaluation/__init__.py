"""Numbers that judge what models produce."""
