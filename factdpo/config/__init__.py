"""Every key once, and what is made of it: checked configs, help texts, command lines."""
