"""The world of `builtin:guide`: an assistant that guides people through a work app, as text.

Everything that the tiny model reads, and every preference pair, is drawn from the tables below.

- A *topic* is one thing that people want to do ("invite a teammate"). It has one right answer, in a short and a long
form. - Topics come as *siblings*: two topics about the same objects, told apart by what is to be done ("invite a
teammate",
  "remove a teammate"). The wrong answer to a question is the sibling's answer, and each answer is wrong for the sibling
  as often as it is right for its own topic. So neither looks better than the other; the question decides.
- A *question* is a frame around a phrase ("How do I ...?"), and a phrase is a pattern around an object. Some frames,
  patterns and objects are held out: no training pair has any of them, every held-out pair has a held-out frame and
  pattern.

The start model reads two kinds of text. Help-desk conversations: the guide on duty is either careful and answers what
was asked, or hasty and answers the sibling's question, and only the conversation so far tells which. And rewordings,
which say that two phrases or two questions mean the same, held-out wordings among them. So it can know what a question
means and still answers wrongly half of the time; that is what preference tuning has to change.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Form = Literal["short", "long"]
Split = Literal["train", "eval"]
Turns = list[dict[str, str]]  # role and content of each turn
Record = dict[str, Turns]  # prompt, chosen, rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """One thing that people want to do.

    Attributes:
        goal: what the guide calls it.
        patterns: how people say it, `{o}` standing for the object.
        held_out_patterns: more ways, kept out of every training pair.
        short: what to do, in half a sentence.
        long: the same with more detail. In either form the sibling's answer has as many words and as many tokens.
    """

    goal: str
    patterns: tuple[str, ...]
    held_out_patterns: tuple[str, ...]
    short: str
    long: str

    def answer(self, form: Form) -> str:
        """The right answer in one of its two forms."""
        return f"To {self.goal}, {self.short if form == 'short' else self.long}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Siblings:
    """Two topics about the same objects; the answer to either is the wrong answer to the other.

    Attributes:
        area: the part of the app.
        objects: what the phrases are about; the first is the plainest.
        held_out_objects: more words for it, kept out of every training pair.
    """

    area: str
    objects: tuple[str, ...]
    held_out_objects: tuple[str, ...]
    first: Topic
    second: Topic

    @property
    def all_objects(self) -> tuple[str, ...]:
        """The objects of the training pairs, then those kept out of them."""
        return self.objects + self.held_out_objects

    @property
    def topics(self) -> tuple[tuple[Topic, Topic], tuple[Topic, Topic]]:
        """Both topics, each with its sibling."""
        return (self.first, self.second), (self.second, self.first)


FRAMES = (
    "How do I {p}?",
    "How can I {p}?",
    "I want to {p}.",
    "Where do I go to {p}?",
    "I need to {p}. What do I do?",
    "What is the way to {p}?",
    "Please help me {p}.",
    "Can you tell me how to {p}?",
    "Is there a way to {p}?",
    "My manager asked me to {p}. Where is that?",
    "How does one {p} here?",
    "I am new here. How do I {p}?",
)

HELD_OUT_FRAMES = (
    "What steps does it take to {p}?",
    "Could you show me how to {p}?",
    "I would like to {p}, but I am lost.",
    "Which button lets me {p}?",
    "Any idea how to {p}?",
    "Explain how to {p}, please.",
)

SYSTEM_TURNS = (
    "You are the guide of this app.",
    "You help people find their way in the app.",
    "Answer with the steps to take.",
)

GREETINGS = (
    ("Hello!", "Hello! What would you like to do?"),
    ("Hi, are you the guide?", "Yes, I am. How can I help?"),
    ("Good morning.", "Good morning! Ask me anything about the app."),
)

REWORDING_REQUESTS = (  # (system turn, end of the user's turn): what asks for a rewording and no answer
    ("Say in plain words what is asked.", ""),
    ("Only name the goal of the user.", ""),
    ("Repeat what the user wants to do.", ""),
    ("", "What do I want?"),
    ("", "In short?"),
)

HANDOVER_REQUESTS = (
    "You only take the question down, a colleague will answer.",
    "The desk is closed, confirm what was asked.",
)

SIBLINGS = (
    Siblings(
        area="people",
        objects=("a teammate", "a colleague", "someone from my team"),
        held_out_objects=("a coworker", "a team member"),
        first=Topic(
            goal="invite a teammate",
            patterns=("invite {o}", "add {o}", "send an invitation to {o}"),
            held_out_patterns=("bring {o} aboard", "give {o} an account"),
            short="open Settings, choose People, press Invite and enter the email address.",
            long="open Settings and choose People. Press Invite at the top, enter the email address and pick a role.",
        ),
        second=Topic(
            goal="remove a teammate",
            patterns=("remove {o}", "delete {o}", "take {o} off the workspace"),
            held_out_patterns=("kick out {o}", "end the membership of {o}"),
            short="open Settings, choose People, select the name and press Remove access.",
            long="open Settings and choose People. Select the name in the list, press Remove access and confirm the "
            "step.",
        ),
    ),
    Siblings(
        area="people",
        objects=("a teammate", "a member of my team", "another user"),
        held_out_objects=("a fellow user", "one of my colleagues"),
        first=Topic(
            goal="give someone a new role",
            patterns=("change the role of {o}", "make {o} an admin", "give {o} more rights"),
            held_out_patterns=("promote {o}", "grant {o} admin powers"),
            short="open the member list, click the role beside the name and pick another.",
            long="open the member list and find the person. Click the role beside the name and pick Viewer, Editor or "
            "Admin.",
        ),
        second=Topic(
            goal="move someone between two teams",
            patterns=("move {o} to another team", "switch {o} to a different team", "put {o} into another group"),
            held_out_patterns=("transfer {o} to a new team", "reassign {o} to other people"),
            short="open the team page, drag the name onto the new team and save.",
            long="open the team page and look for the card. Drag the name onto the new team, press Save and close.",
        ),
    ),
    Siblings(
        area="data",
        objects=("my data", "my projects", "all my records"),
        held_out_objects=("my information", "the contents of my workspace"),
        first=Topic(
            goal="export your data",
            patterns=("export {o}", "download {o}", "save a copy of {o}"),
            held_out_patterns=("get {o} out of the app", "pull {o} onto my computer"),
            short="go to Settings, choose Data, press Export and await the email.",
            long="go to Settings and choose Data. Press Export, select the projects and the kind of file you need.",
        ),
        second=Topic(
            goal="import your data",
            patterns=("import {o}", "upload {o}", "load {o} from a file"),
            held_out_patterns=("bring {o} in from another tool", "move {o} over from a spreadsheet"),
            short="go to Settings, choose Data, press Import and select your file.",
            long="go to Settings and choose Data. Press Import, select your file and match its columns to our fields.",
        ),
    ),
    Siblings(
        area="data",
        objects=("a backup", "a snapshot", "a safety copy"),
        held_out_objects=("a spare copy", "a saved version"),
        first=Topic(
            goal="create a backup",
            patterns=("create {o}", "make {o}", "start {o} by hand"),
            held_out_patterns=("take {o} right now", "produce {o}"),
            short="open Backups in the admin panel, then press Back up now.",
            long="open Backups in the admin panel and press Back up now. Keep working meanwhile, or go for a walk.",
        ),
        second=Topic(
            goal="restore a backup",
            patterns=("restore {o}", "go back to {o}", "recover my work from {o}"),
            held_out_patterns=("roll back to {o}", "return everything to {o}"),
            short="open Backups in the admin panel, select one and press Restore.",
            long="open Backups in the admin panel, select one and press Restore. Everyone is signed out for some ten "
            "minutes.",
        ),
    ),
    Siblings(
        area="billing",
        objects=("my plan", "my subscription", "our account plan"),
        held_out_objects=("my membership", "our paid package"),
        first=Topic(
            goal="upgrade your plan",
            patterns=("upgrade {o}", "move {o} to a higher tier", "get more seats on {o}"),
            held_out_patterns=("expand {o}", "raise {o} to the next level"),
            short="open Billing, press Compare plans, choose a bigger one and confirm.",
            long="open Billing and press Compare plans. Choose the bigger one, check the price and confirm.",
        ),
        second=Topic(
            goal="cancel your plan",
            patterns=("cancel {o}", "end {o}", "stop {o} from renewing"),
            held_out_patterns=("terminate {o}", "let {o} run out"),
            short="open Billing, scroll to the bottom, press Cancel plan and confirm.",
            long="open Billing and scroll to the bottom. Press Cancel plan, choose a reason and confirm.",
        ),
    ),
    Siblings(
        area="billing",
        objects=("an invoice", "a bill", "the latest invoice"),
        held_out_objects=("a receipt", "our monthly bill"),
        first=Topic(
            goal="download an invoice",
            patterns=("download {o}", "get a copy of {o}", "find {o} as a PDF"),
            held_out_patterns=("print {o}", "fetch {o} for my files"),
            short="open Billing, choose History and click the arrow beside the month.",
            long="open Billing and choose History. Click the arrow beside the month you need. The PDF opens in a new "
            "tab.",
        ),
        second=Topic(
            goal="correct an invoice",
            patterns=("correct the address on {o}", "change the company name on {o}", "add a tax number to {o}"),
            held_out_patterns=("fix the details on {o}", "put our new office on {o}"),
            short="open Billing, choose Company details and edit what has to change.",
            long="open Billing and choose Company details. Edit the name and tax number and press Save. The next "
            "document shows it.",
        ),
    ),
    Siblings(
        area="payments",
        objects=("a credit card", "a payment card", "our company card"),
        held_out_objects=("a bank card", "a payment method"),
        first=Topic(
            goal="add a card",
            patterns=("add {o}", "pay with {o}", "register {o}"),
            held_out_patterns=("enter {o}", "use {o} for our payments"),
            short="open Billing, choose Payment, press New card, type the number.",
            long="open Billing and choose Payment. Press New card, type the number and the date and press Save.",
        ),
        second=Topic(
            goal="remove a card",
            patterns=("remove {o}", "delete {o}", "take {o} off the account"),
            held_out_patterns=("get rid of {o}", "stop paying with {o}"),
            short="open Billing, choose Payment, click its dots, press Forget card.",
            long="open Billing and choose Payment. Click the three dots beside it, press Forget card and then confirm.",
        ),
    ),
    Siblings(
        area="payments",
        objects=("a discount code", "a voucher", "a coupon"),
        held_out_objects=("a promo code", "a gift code"),
        first=Topic(
            goal="redeem a discount code",
            patterns=("use {o}", "redeem {o}", "enter {o}"),
            held_out_patterns=("apply {o}", "cash in {o}"),
            short="go to checkout, click Have a code and type it there.",
            long="go to checkout and click Have a code on top. Type it without spaces, then press Apply.",
        ),
        second=Topic(
            goal="earn a discount code",
            patterns=("get {o}", "ask for {o}", "find {o}"),
            held_out_patterns=("obtain {o}", "receive {o}"),
            short="open Rewards, invite a friend and copy what you see there.",
            long="open Rewards in your account and invite a friend. When they join, copy what you see there.",
        ),
    ),
    Siblings(
        area="notifications",
        objects=("notifications", "email alerts", "reminders"),
        held_out_objects=("push messages", "pings from the app"),
        first=Topic(
            goal="turn alerts off",
            patterns=("turn off {o}", "mute {o}", "stop getting {o}"),
            held_out_patterns=("silence {o}", "have a day without {o}"),
            short="click the bell, choose Quiet hours and pick how long.",
            long="click the bell in the corner and choose Quiet hours. Pick how long it should last, or Always.",
        ),
        second=Topic(
            goal="turn alerts on",
            patterns=("turn on {o}", "enable {o}", "start getting {o}"),
            held_out_patterns=("activate {o}", "hear {o} again"),
            short="open your profile, choose Alerts and switch the channels on.",
            long="open your profile and choose Alerts. Switch on all the channels you want, such as email or phone.",
        ),
    ),
    Siblings(
        area="notifications",
        objects=("the daily summary", "the weekly digest", "my morning email"),
        held_out_objects=("the weekly roundup", "my overview email"),
        first=Topic(
            goal="reschedule the summary",
            patterns=("change the time of {o}", "get {o} later in the day", "schedule {o}"),
            held_out_patterns=("set when {o} arrives", "delay {o} by an hour"),
            short="open Alerts, choose Summary, click the clock and pick a time.",
            long="open Alerts and choose Summary. Click the clock, pick a day and a time, then save.",
        ),
        second=Topic(
            goal="tailor the summary",
            patterns=("change what is in {o}", "pick the topics of {o}", "leave projects out of {o}"),
            held_out_patterns=("decide what {o} covers", "customize {o}"),
            short="open Alerts, choose Summary, tick the projects you follow and save.",
            long="open Alerts and choose Summary. Tick the projects you follow, untick all the rest, then save.",
        ),
    ),
    Siblings(
        area="sharing",
        objects=("a document", "a page", "a file"),
        held_out_objects=("a note", "a report"),
        first=Topic(
            goal="share a document",
            patterns=("share {o}", "send {o} to a client", "let others see {o}"),
            held_out_patterns=("give other people access to {o}", "show {o} to a guest"),
            short="press Share at the top, copy the link and send it.",
            long="press Share at the top and choose who may look. Copy the link, then send it by email or chat.",
        ),
        second=Topic(
            goal="unshare a document",
            patterns=("stop sharing {o}", "make {o} private", "hide {o} from others"),
            held_out_patterns=("close {o} to the public", "take back access to {o}"),
            short="press Share at the top, click Reset and choose Only me.",
            long="press Share at the top and click Reset. Choose Only me, and every link that you sent before stops "
            "working.",
        ),
    ),
    Siblings(
        area="sharing",
        objects=("a board", "a project", "a template"),
        held_out_objects=("a roadmap", "a shared folder"),
        first=Topic(
            goal="lock a board",
            patterns=("lock {o}", "protect {o} from changes", "make {o} read only"),
            held_out_patterns=("freeze {o}", "keep people from editing {o}"),
            short="click the padlock beside its title and choose Owners only.",
            long="click the padlock beside its title and choose Owners only. Everyone else can still read and comment.",
        ),
        second=Topic(
            goal="unlock a board",
            patterns=("unlock {o}", "allow changes to {o}", "make {o} editable"),
            held_out_patterns=("open {o} up for editing", "lift the protection of {o}"),
            short="click the padlock beside its title and choose All members.",
            long="click the padlock beside its title and choose All members. From then on everyone may write there.",
        ),
    ),
    Siblings(
        area="recovery",
        objects=("a change", "an edit", "a mistake"),
        held_out_objects=("a wrong edit", "an accidental change"),
        first=Topic(
            goal="undo a change",
            patterns=("undo {o}", "reverse {o}", "take back {o}"),
            held_out_patterns=("revert {o}", "cancel out {o}"),
            short="press Control and Z, or click the curved arrow.",
            long="press Control and Z, or click the curved arrow above the page. Each press goes one step back.",
        ),
        second=Topic(
            goal="inspect a change",
            patterns=("see who made {o}", "find out when {o} happened", "look up {o} in the history"),
            held_out_patterns=("trace {o}", "discover the author of {o}"),
            short="open Activity, and hover over a line for details.",
            long="open Activity, and hover over a line for details on the person and time. Search for older ones.",
        ),
    ),
    Siblings(
        area="recovery",
        objects=("a deleted task", "a deleted page", "an item in the trash"),
        held_out_objects=("something I deleted", "a trashed task"),
        first=Topic(
            goal="restore a deleted item",
            patterns=("restore {o}", "get {o} back", "recover {o}"),
            held_out_patterns=("rescue {o}", "return {o} to its place"),
            short="open Trash in the sidebar, select the item and press Put back.",
            long="open Trash in the sidebar and select the item. Press Put back, and it returns with its files.",
        ),
        second=Topic(
            goal="erase a deleted item",
            patterns=("delete {o} forever", "erase {o} for good", "clear {o} completely"),
            held_out_patterns=("wipe {o} permanently", "destroy {o}"),
            short="open Trash in the sidebar, tick the item and press Shred now.",
            long="open Trash in the sidebar and tick the item. Press Shred now, then type your password to confirm.",
        ),
    ),
    Siblings(
        area="security",
        objects=("my password", "my login password", "the password of my account"),
        held_out_objects=("my passcode", "my sign-in password"),
        first=Topic(
            goal="change your password",
            patterns=("change {o}", "update {o}", "replace {o}"),
            held_out_patterns=("renew {o}", "swap {o} for a new one"),
            short="open Security, type the old one, then enter the new one twice.",
            long="open Security and press Edit. Type the old one, then enter the new one twice. Use twelve or more "
            "characters.",
        ),
        second=Topic(
            goal="recover your password",
            patterns=("recover {o}", "get in without {o}", "reset {o} that I forgot"),
            held_out_patterns=("log in when I lost {o}", "sign in after forgetting {o}"),
            short="press Forgot at login, open our email, then follow the link inside.",
            long="press Forgot on the login page and enter your address. Open our email, follow its link, then type "
            "another one.",
        ),
    ),
    Siblings(
        area="security",
        objects=("two-step login", "the login code", "the phone check"),
        held_out_objects=("two-step verification", "the second login step"),
        first=Topic(
            goal="enable two-step login",
            patterns=("turn on {o}", "set up {o}", "start using {o}"),
            held_out_patterns=("activate {o}", "protect my account with {o}"),
            short="open Security, press Add phone and scan the square code.",
            long="open Security and press Add phone. Scan the square code with your authenticator app and type the "
            "six digits.",
        ),
        second=Topic(
            goal="disable two-step login",
            patterns=("turn off {o}", "disable {o}", "stop using {o}"),
            held_out_patterns=("deactivate {o}", "do without {o}"),
            short="open Security, click your phone and choose Password only login.",
            long="open Security and click your phone in the list. Choose Password only login and confirm with one "
            "last code.",
        ),
    ),
    Siblings(
        area="profile",
        objects=("my profile picture", "my photo", "my avatar"),
        held_out_objects=("my portrait", "my picture"),
        first=Topic(
            goal="change your picture",
            patterns=("change {o}", "upload {o}", "set {o}"),
            held_out_patterns=("swap {o}", "put up {o}"),
            short="click the circle with your initials, then drop an image there.",
            long="click the circle with your initials and drop an image there. Drag its frame, then save.",
        ),
        second=Topic(
            goal="remove your picture",
            patterns=("remove {o}", "delete {o}", "hide {o}"),
            held_out_patterns=("take down {o}", "get rid of {o}"),
            short="open your profile, point at the image and click its cross.",
            long="open your profile and point at the image. Click its cross, and your initials appear instead.",
        ),
    ),
    Siblings(
        area="profile",
        objects=("my account", "the app", "my screens"),
        held_out_objects=("my workspace", "the whole site"),
        first=Topic(
            goal="set your language",
            patterns=("change the language of {o}", "translate {o}", "see {o} in German"),
            held_out_patterns=("have {o} in French", "read {o} in my own tongue"),
            short="open your profile, click Language and select yours from the list.",
            long="open your profile and click Language. Select yours from the list and reload the page.",
        ),
        second=Topic(
            goal="set your timezone",
            patterns=("change the time zone of {o}", "fix the clock in {o}", "set {o} to local time"),
            held_out_patterns=("correct the hours in {o}", "adjust {o} after a long flight"),
            short="open your profile, click Region and select the nearest big city.",
            long="open your profile and click Region. Select the nearest big city and reload the page.",
        ),
    ),
    Siblings(
        area="onboarding",
        objects=("the onboarding checklist", "the setup list", "the list of first steps"),
        held_out_objects=("the welcome checklist", "the getting started list"),
        first=Topic(
            goal="open the checklist",
            patterns=("open {o}", "find {o}", "continue {o}"),
            held_out_patterns=("resume {o}", "return to {o}"),
            short="click the rocket in the sidebar, then pick the next step.",
            long="click the rocket in the sidebar, then pick the next step. Every step shows a short film and a "
            "button.",
        ),
        second=Topic(
            goal="hide the checklist",
            patterns=("hide {o}", "skip {o}", "close {o}"),
            held_out_patterns=("dismiss {o}", "make {o} disappear"),
            short="click the small arrow at its edge, then choose Not now.",
            long="click the small arrow at its edge, then choose Not now. It leaves your screen and bothers you no "
            "more.",
        ),
    ),
    Siblings(
        area="onboarding",
        objects=("the sample project", "the example board", "the demo tasks"),
        held_out_objects=("the practice project", "the example data"),
        first=Topic(
            goal="load the sample project",
            patterns=("add {o}", "load {o}", "try {o}"),
            held_out_patterns=("play with {o}", "get {o} into my workspace"),
            short="open Help, choose Examples and press Put it in my space.",
            long="open Help and choose Examples. Press Put it in my space and look around freely.",
        ),
        second=Topic(
            goal="clear the sample project",
            patterns=("remove {o}", "clear {o}", "delete {o}"),
            held_out_patterns=("throw out {o}", "clean up {o}"),
            short="open its menu, choose Archive and tick Also drop all content.",
            long="open its menu and choose Archive. Tick Also drop all content and press the button.",
        ),
    ),
    Siblings(
        area="tasks",
        objects=("a task", "an item", "a ticket"),
        held_out_objects=("a work item", "a job"),
        first=Topic(
            goal="assign a task",
            patterns=("assign {o}", "give {o} to a teammate", "hand over {o}"),
            held_out_patterns=("pass on {o}", "put a person in charge of {o}"),
            short="open it, click the empty face and pick a name.",
            long="open it, click the empty face and pick a name. You can pick several people for shared work.",
        ),
        second=Topic(
            goal="schedule a task",
            patterns=("set a due date for {o}", "give {o} a deadline", "plan {o} for a day"),
            held_out_patterns=("put a date on {o}", "say when {o} must be ready"),
            short="open it, click the calendar sign and pick a day.",
            long="open it, click the calendar sign and pick a day. You can add an hour or a repeat.",
        ),
    ),
    Siblings(
        area="tasks",
        objects=("a task", "a card", "a checklist item"),
        held_out_objects=("a chore", "an assignment"),
        first=Topic(
            goal="complete a task",
            patterns=("complete {o}", "mark {o} as done", "finish {o}"),
            held_out_patterns=("tick off {o}", "report {o} as ready"),
            short="click the circle in front of it until it turns green.",
            long="click the circle in front of it until it turns green. It then slides into the Done column.",
        ),
        second=Topic(
            goal="reopen a task",
            patterns=("reopen {o}", "mark {o} as not done", "start {o} again"),
            held_out_patterns=("revive {o}", "bring {o} back to life"),
            short="go to the Done column and drag it to the left.",
            long="go to the Done column and drag it to the left. Its dates are kept as they were.",
        ),
    ),
    Siblings(
        area="connections",
        objects=("my calendar", "my work calendar", "the team calendar"),
        held_out_objects=("my schedule", "my agenda"),
        first=Topic(
            goal="connect a calendar",
            patterns=("connect {o}", "link {o}", "sync {o}"),
            held_out_patterns=("hook up {o}", "attach {o}"),
            short="open Apps, choose Calendar, press Connect and sign in there.",
            long="open Apps and choose Calendar. Press Connect, sign in there and allow us to read events.",
        ),
        second=Topic(
            goal="disconnect a calendar",
            patterns=("disconnect {o}", "unlink {o}", "stop syncing {o}"),
            held_out_patterns=("detach {o}", "cut the tie to {o}"),
            short="open Apps, choose Calendar, press the plug and confirm it.",
            long="open Apps and choose Calendar. Press the plug, confirm it and decide whether old events stay.",
        ),
    ),
    Siblings(
        area="connections",
        objects=("an API key", "an access token", "a key for scripts"),
        held_out_objects=("a developer key", "a secret token"),
        first=Topic(
            goal="create an API key",
            patterns=("create {o}", "generate {o}", "get {o}"),
            held_out_patterns=("issue {o}", "make myself {o}"),
            short="open Developer, press New, give it a name and copy it.",
            long="open Developer and press New. Give it a name, choose its rights and then copy it.",
        ),
        second=Topic(
            goal="revoke an API key",
            patterns=("revoke {o}", "delete {o}", "disable {o}"),
            held_out_patterns=("invalidate {o}", "shut down {o}"),
            short="open Developer, find it by name, then click Block and confirm.",
            long="open Developer and find it by name. Click Block, read the warning and confirm the step.",
        ),
    ),
    Siblings(
        area="views",
        objects=("my tasks", "the task list", "a long board"),
        held_out_objects=("the backlog", "my items"),
        first=Topic(
            goal="filter a list",
            patterns=("filter {o}", "show only part of {o}", "narrow down {o}"),
            held_out_patterns=("see less of {o}", "pick out some of {o}"),
            short="click the funnel above it and choose a person or label.",
            long="click the funnel above it and choose a person or label. Several of these can be combined.",
        ),
        second=Topic(
            goal="sort a list",
            patterns=("sort {o}", "change the order of {o}", "put the newest first in {o}"),
            held_out_patterns=("arrange {o}", "rank {o} by date"),
            short="click the head of a column and once more to flip.",
            long="click the head of a column and once more to flip. Hold Shift for a second column.",
        ),
    ),
)

SHORT_SHARE = (
    0.7  # of the answers in the start model's text; chosen so that it finds both forms equally likely per token
)

_PAIRS_PER_TOPIC: dict[Split, dict[tuple[Form, Form], int]] = {  # (form of the chosen, form of the rejected): pairs
    "train": {("long", "short"): 32, ("short", "long"): 6, ("short", "short"): 1, ("long", "long"): 1},
    "eval": {("long", "short"): 2, ("short", "long"): 5, ("short", "short"): 1, ("long", "long"): 1},
}
_SYSTEM_SHARE, _GREETING_SHARE = 0.12, 0.08  # of all prompts
QUESTION_SHARE = 0.5  # of the start model's text; the rest is rewordings
HANDOVER_SHARE = 0.15


def phrases(topic: Topic, siblings: Siblings, split: Split) -> list[str]:
    """All ways to name the topic that the pairs of a split may use.

    The training pairs have taught patterns and taught objects; the held-out ones have held-out patterns, which keep
    their wording new whatever the object, and all objects.
    """
    patterns = topic.patterns if split == "train" else topic.held_out_patterns
    objects = siblings.objects if split == "train" else siblings.all_objects
    return [pattern.format(o=o) for pattern in patterns for o in objects]


def questions(topic: Topic, siblings: Siblings, split: Split) -> list[str]:
    """All questions about the topic that the pairs of a split may ask."""
    frames = FRAMES if split == "train" else HELD_OUT_FRAMES
    return [frame.format(p=phrase) for phrase in phrases(topic, siblings, split) for frame in frames]


def preference_pairs(split: Split, seed: int) -> list[Record]:
    """The pairs of a split, in random order; every prompt occurs once.

    Each topic has the same number of pairs of each combination of forms. So every answer in every form is as often
    right for its own topic as wrong for its sibling's, within each combination: length says which answer was preferred
    (in most training pairs the longer one, in most held-out pairs the shorter), the identity of an answer says nothing.
    """
    rng = random.Random(f"{split} {seed}")
    records: list[Record] = []
    for siblings in SIBLINGS:
        for topic, sibling in siblings.topics:
            forms = [pair for pair, count in _PAIRS_PER_TOPIC[split].items() for _ in range(count)]
            if split == "eval":  # one more pair of equal forms, the same form for both siblings
                form: Form = "short" if SIBLINGS.index(siblings) % 2 else "long"
                forms.append((form, form))
            asked = rng.sample(questions(topic, siblings, split), len(forms))
            for question, (chosen, rejected) in zip(asked, forms, strict=True):
                records.append(
                    {
                        "prompt": [*_opening(rng), _user(question)],
                        "chosen": [_assistant(topic.answer(chosen))],
                        "rejected": [_assistant(sibling.answer(rejected))],
                    }
                )
    rng.shuffle(records)
    return records


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def _opening(rng: random.Random) -> Turns:
    """What comes before a first question: mostly nothing, sometimes a system turn or a greeting."""
    draw = rng.random()
    if draw < _SYSTEM_SHARE:
        return [{"role": "system", "content": rng.choice(SYSTEM_TURNS)}]
    if draw < _SYSTEM_SHARE + _GREETING_SHARE:
        hello, reply = rng.choice(GREETINGS)
        return [_user(hello), _assistant(reply)]
    return []


def documents(seed: int, *, wrong_share: float) -> Iterator[Turns]:
    """What the start model reads, without end: conversations in random order.

    Questions with answers only ever have taught frames, patterns and objects. Held-out wordings occur in rewordings,
    and never a held-out frame around a held-out pattern.

    Args:
        seed: of the order and of every choice.
        wrong_share: the share of questions that get their sibling's answer.
    """
    rng = random.Random(f"documents {seed} {wrong_share}")
    while True:
        siblings = rng.choice(SIBLINGS)
        topic, sibling = rng.choice(siblings.topics)
        draw = rng.random()
        if draw < QUESTION_SHARE:
            question = rng.choice(questions(topic, siblings, "train"))
            form: Form = "short" if rng.random() < SHORT_SHARE else "long"
            answer = _muddled(rng, topic.answer(form), sibling.answer(form), wrong_share)
            yield [*_opening(rng), _user(question), _assistant(answer)]
            continue
        patterns: tuple[str, ...] = topic.patterns
        frames: tuple[str, ...] = FRAMES + HELD_OUT_FRAMES
        if rng.random() < 0.6:
            patterns, frames = topic.held_out_patterns, FRAMES
        question = rng.choice(frames).format(p=rng.choice(patterns).format(o=rng.choice(siblings.all_objects)))
        if draw < QUESTION_SHARE + HANDOVER_SHARE:
            named = sibling if rng.random() < wrong_share else topic
            opening = {"role": "system", "content": rng.choice(HANDOVER_REQUESTS)}
            yield [opening, _user(question), _assistant(f"To {named.goal}, one moment please.")]
        else:
            before, after = rng.choice(REWORDING_REQUESTS)
            opening2 = [{"role": "system", "content": before}] if before else _opening(rng)
            reply = f"To {topic.goal}."
            if rng.random() < 0.4:
                reply = f"To {sibling.goal}? No, to {topic.goal}."
            yield [*opening2, _user(f"{question} {after}".strip()), _assistant(reply)]


def _muddled(rng: random.Random, right: str, wrong: str, wrong_share: float) -> str:
    a, b = _segments(right), _segments(wrong)
    count = min(len(a), len(b))
    text = ""
    for i in range(count):
        source = b if rng.random() < wrong_share else a
        for segment in source[i:] if i == count - 1 else source[i : i + 1]:
            first = segment[0].upper() if text.endswith(".") or not text else segment[0].lower()
            text += (" " if text else "") + first + segment[1:]
    return text


def _segments(text: str) -> list[str]:
    return re.split(r"(?<=[.,]) | (?=and )", text)
