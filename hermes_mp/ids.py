"""The numbers that messages and minds tell apart; here, so that what starts loaders need not import the messages."""

from __future__ import annotations

from typing import NewType

Ticket = NewType("Ticket", int)
UnitNo = NewType("UnitNo", int)
SlotNo = NewType("SlotNo", int)
LoaderNo = NewType("LoaderNo", int)
Epoch = NewType("Epoch", int)
