"""How the controller speaks HTTP."""
