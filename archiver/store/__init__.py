"""Object stores behind one port (base.py), and the wrappers around it."""
