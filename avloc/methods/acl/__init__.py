"""ACL-SSL: audio as a token in CLIP's text tower."""

from avloc.methods.acl.method import ACL

__all__ = ["ACL"]
