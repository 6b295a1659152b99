"""The snippets are run by ../test_article.py; collecting them for doctests would run them too."""

collect_ignore_glob = ["*.py"]
