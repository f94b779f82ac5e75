"""The folder that the server gets as its backend ``recpress``; model.py runs inside the server."""
