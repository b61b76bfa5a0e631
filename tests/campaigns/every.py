"""All campaigns by name, with the faults of a full one (None: as many as there are) and of CI's sample."""

from __future__ import annotations

from campaigns.calls import CallsCampaign
from campaigns.daemon import DaemonCampaign
from campaigns.end import EndCampaign
from campaigns.kill import KillCampaign
from campaigns.stop import StopCampaign

CAMPAIGNS = {
    "kill": (KillCampaign, 1000, 60),
    "daemon": (DaemonCampaign, 200, 15),
    "stop": (StopCampaign, 200, 10),
    "end": (EndCampaign, 100, 10),
    "calls": (CallsCampaign, None, 10),
}
