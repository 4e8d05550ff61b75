"""One HTML file that shows traces: `data` and `pictures` say what, `drawing` where lines go, `page` writes it."""
