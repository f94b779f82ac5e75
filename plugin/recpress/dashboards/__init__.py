"""Dashboards, declared once: as Grafana's JSON, and as a picture drawn from Prometheus."""
