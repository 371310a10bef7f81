"""Who leads: any member may, and the ``leader`` key says who does.

Everybody watches the leader as the leader watches everybody (`Detector`). When it is found dead, or
nobody leads, the others take the key by compare-and-set: the first in line (longest in the group)
at once, the others a little later each, so that there is rarely a conflict and never a wait for a
candidate that died too. It is no election in the strict sense, and need not be: two that both
believe to lead can do no harm, for each of their writes is compare-and-set, too.

A leader that leaves deletes the key. Its time to live is only the backstop. While a newer version's
``cfg`` is in force nobody takes the key who cannot read it, or renews it: who can leads.
"""

from ..model import LeaderRecord, encode
from ..naming import CONFIG_KEY, LEADER_KEY
from ..ports import Listen, WriteKey, Written
from .context import Context, Part
from .detector import Detector, Verdict
from .handoff import RETRY_S
from .steps import Pause, Script

STAGGER_S = 0.03
"""How much later than the one before it each member in line takes the key."""
EAGER_PLACES = 2
"""So many members behind the leader probe it before a heartbeat is late; the rest need not."""


def claim(context: Context) -> Part:
    """Take the ``leader`` key over, or renew it: compare-and-set, with its time to live."""
    settings = context.settings
    value = encode(LeaderRecord(member=settings.member, instance=settings.instance))
    reply = yield WriteKey(
        id=context.steps.take_id(),
        key=LEADER_KEY,
        value=value,
        revision=context.book.revision(LEADER_KEY),
        ttl_s=settings.timing.lease_s,
    )
    if isinstance(reply, Written):
        context.note(LEADER_KEY, value, reply.revision)
        return True
    return False


class Election:
    """A member's part in it, while it does not lead."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.detector = Detector(context.settings.timing)
        self.dead: dict[str, Verdict] = {}
        """Leaders found dead here since somebody led: what a new leader knows from the start."""
        self._campaign_at: float | None = None
        self._listening_to: str | None = None

    def on_leader(self) -> None:
        """The ``leader`` key changed."""
        leader = self.context.book.leader
        now = self.context.now
        if leader is None or self._is_old_self(leader):
            self.detector.watch({}, now)
            self._plan_campaign()
            return
        # Whoever writes the key is alive, found dead before or not, and a leader finds out itself
        # who else is: a verdict that was kept would be held against one that has come back.
        self.dead.clear()
        self._campaign_at = None
        self.detector.is_eager = self._place_in_line() <= EAGER_PLACES
        self.detector.watch({leader.member: leader.instance}, now)
        if self._listening_to != leader.member:
            self._listening_to = leader.member
            self.context.out.append(Listen(member=leader.member))

    def heard(self, member: str, instance: str, deaf_s: float) -> None:
        """Note a heartbeat; one of a leader found dead calls off what has not succeeded so far."""
        self.detector.heard(member, instance, self.context.now, deaf_s)
        verdict, leader = self.dead.get(member), self.context.book.leader
        if verdict is None or verdict.instance != instance or self.detector.is_deaf(deaf_s):
            return
        if leader is not None and (leader.member, leader.instance) == (member, instance):
            self.on_leader()

    def withdraw(self) -> None:
        """Take no key any more: this member is on its way out."""
        self.context.may_lead = False
        self._campaign_at = None
        self.context.steps.cancel("campaign")

    def on_verdict(self, verdict: Verdict) -> None:
        """The leader is dead."""
        self.dead[verdict.member] = verdict
        self.detector.watch({}, self.context.now)
        self._plan_campaign()

    def tick(self) -> None:
        """Take the key if it is this member's turn."""
        now = self.context.now
        if not self._may_campaign:
            return
        if self._campaign_at is None:
            if self.context.has_leader_lapsed:
                self._plan_campaign()
            return
        if now < self._campaign_at:
            return
        if not self.detector.may_judge(self.context.deaf_s):
            self._campaign_at = now + self.context.settings.timing.heartbeat_interval_s
            return
        self._campaign_at = now + self.context.settings.timing.heartbeat_timeout_s
        if "campaign" not in self.context.steps:
            self.context.steps.start("campaign", self._campaign(), now)

    @property
    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        if self._campaign_at is None or not self._may_campaign:
            return float("inf")
        return self._campaign_at

    @property
    def _may_campaign(self) -> bool:
        return self.context.is_connected and CONFIG_KEY not in self.context.book.too_new

    def _plan_campaign(self) -> None:
        if self.context.may_lead and self._campaign_at is None:
            self._campaign_at = self.context.now + STAGGER_S * self._place_in_line()

    def _place_in_line(self) -> int:
        members = self.context.book.members
        line = sorted(
            (member for member in members if member not in self.dead),
            key=lambda member: (members[member].joined_ns, member),
        )
        me = self.context.settings.member
        return line.index(me) if me in line else len(line)

    def _is_old_self(self, leader: LeaderRecord) -> bool:
        settings = self.context.settings
        return leader.member == settings.member and leader.instance != settings.instance

    def _campaign(self) -> Script:
        if (yield from claim(self.context)):
            return
        while not (yield from self.context.refresh_key(LEADER_KEY)):
            yield Pause(RETRY_S)
