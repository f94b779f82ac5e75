"""Small reference recommenders with their training, for the demo and the tests."""
