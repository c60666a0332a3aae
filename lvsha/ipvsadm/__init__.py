"""The command ``ipvsadm`` for a running lvsha: words in, the kernel tool's text out."""
