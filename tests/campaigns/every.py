"""All campaigns by name, with the faults, inputs or seconds of a full one and of CI's sample."""

from __future__ import annotations

import math

from campaigns.board_kill import BoardKillCampaign
from campaigns.calls import CallsCampaign
from campaigns.daemon import DaemonCampaign
from campaigns.end import EndCampaign
from campaigns.files import FilesCampaign
from campaigns.header import HeaderCampaign
from campaigns.kill import KillCampaign
from campaigns.lan import LanCampaign
from campaigns.link import LinkCampaign
from campaigns.soak import SoakCampaign
from campaigns.stop import StopCampaign
from campaigns.wire import WireCampaign

ON_A_BED = ("board-kill", "link")  # which not every machine can make
CAMPAIGNS = {
    "kill": (KillCampaign, 1000, 60),
    "daemon": (DaemonCampaign, 200, 15),
    "stop": (StopCampaign, 200, 10),
    "end": (EndCampaign, 100, 10),
    "files": (FilesCampaign, 300, 20),
    "header": (HeaderCampaign, 100_000, 10_000),
    "wire": (WireCampaign, 100_000, 10_000),
    "lan": (LanCampaign, 100_000, 2_000),
    "board-kill": (BoardKillCampaign, 200, 15),
    "link": (LinkCampaign, 100, 8),
    "soak": (SoakCampaign, 600, 45),
    "calls": (CallsCampaign, math.inf, 10),
}
