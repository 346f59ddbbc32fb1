"""Boot, type, expect."""


async def test_dir(screen, keyboard):
    await screen.wait_for("ok>")
    await keyboard.type("dir\n")
    await screen.wait_for("readme.txt")
