"What a browser sends to an explorer, and what it is told: the way of a message, without a browser."
from itertools import count

from wsss_nb.explore.frame import same_panels, told_panels, unpacked

_turns = count()


def told(panel):
    "Return what the browser of a panel was told last"
    return unpacked(panel.widget.packed)


def send(panel, name, value):
    "Move a control as a browser does: a slider or a list says which of its values, by number; return what it is told"
    panel.widget.set_state({"asked": {"turn": str(next(_turns)), "name": name, "value": value}})
    return told(panel)


def caption(panel): return told(panel)["view"]["caption"]


def painted(panel):
    "Return the pictures that a browser paints, {title: (H,W,3) uint8}"
    said = told(panel)
    return {p.title: p.paint() for p in told_panels(said, said["view"])}


def same(panel, panels):
    "Does the browser show these panels, and no others?"
    said = told(panel)
    return same_panels(panels, told_panels(said, said["view"]))
