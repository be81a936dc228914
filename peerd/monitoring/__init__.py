"""What operators watch: every exported metric, and the alerts and the dashboard made of them."""
