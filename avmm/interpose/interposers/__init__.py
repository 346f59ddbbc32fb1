"""Interposers: what can be put between an emulated disk and the VMM's driver, under a guest that does not notice.

``trace`` writes every request down, ``fault`` makes requests fail, come late or be torn by rules, ``limit`` is a token bucket,
``mirror`` copies the disk to a second one and can switch over to it, ``share`` lets another machine read along.
"""
