"""All campaigns by name, with the faults, inputs or seconds of a full one and of CI's sample."""

from __future__ import annotations

import math

from campaigns.calls import CallsCampaign
from campaigns.daemon import DaemonCampaign
from campaigns.end import EndCampaign
from campaigns.files import FilesCampaign
from campaigns.header import HeaderCampaign
from campaigns.kill import KillCampaign
from campaigns.soak import SoakCampaign
from campaigns.stop import StopCampaign
from campaigns.wire import WireCampaign

CAMPAIGNS = {
    "kill": (KillCampaign, 1000, 60),
    "daemon": (DaemonCampaign, 200, 15),
    "stop": (StopCampaign, 200, 10),
    "end": (EndCampaign, 100, 10),
    "files": (FilesCampaign, 300, 20),
    "header": (HeaderCampaign, 100_000, 10_000),
    "wire": (WireCampaign, 100_000, 10_000),
    "soak": (SoakCampaign, 600, 45),
    "calls": (CallsCampaign, math.inf, 10),
}
