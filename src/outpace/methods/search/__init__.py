"""Methods that write several texts of a prompt side by side and keep the best."""
