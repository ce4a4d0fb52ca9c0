"""The tables of `builtin:guide`: what people ask a work app's guide, and what it answers. No logic; see `corpus`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """One thing that people want to do.

    Attributes:
        goal: what the guide calls it.
        patterns: how people say it, `{o}` standing for the object.
        held_out_patterns: more ways, kept out of every training pair.
        steps: what to do. The sibling has other steps with as many words, one by one.
        outcome: what then happens; the sibling has another with as many words.
    """

    goal: str
    patterns: tuple[str, ...]
    held_out_patterns: tuple[str, ...]
    steps: tuple[str, str, str]
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Siblings:
    """Two topics about the same objects; the answer to either is the wrong answer to the other.

    Attributes:
        objects: what the questions are about; the first is the plainest.
        held_out_objects: more words for it, kept out of every training pair.
    """

    objects: tuple[str, ...]
    held_out_objects: tuple[str, ...]
    first: Topic
    second: Topic


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

SIBLINGS = (
    Siblings(
        objects=("a teammate", "a colleague", "someone from my team"),
        held_out_objects=("a coworker", "a team member"),
        first=Topic(
            goal="invite a teammate",
            patterns=("invite {o}", "add {o}", "send an invitation to {o}"),
            held_out_patterns=("bring {o} aboard", "give {o} an account"),
            steps=("open People", "press Invite", "enter the email address"),
            outcome="They get a link within minutes.",
        ),
        second=Topic(
            goal="remove a teammate",
            patterns=("remove {o}", "delete {o}", "take {o} off the workspace"),
            held_out_patterns=("kick out {o}", "end the membership of {o}"),
            steps=("open Members", "click Remove", "confirm with your password"),
            outcome="Their tasks stay with the team.",
        ),
    ),
    Siblings(
        objects=("a teammate", "a member of my team", "another user"),
        held_out_objects=("a fellow user", "one of my colleagues"),
        first=Topic(
            goal="give someone a new role",
            patterns=("change the role of {o}", "make {o} an admin", "give {o} more rights"),
            held_out_patterns=("promote {o}", "grant {o} admin powers"),
            steps=("open Roles", "find the person", "pick Viewer or Admin"),
            outcome="It counts from the next login.",
        ),
        second=Topic(
            goal="move someone between two teams",
            patterns=("move {o} to another team", "switch {o} to a different team", "put {o} into another group"),
            held_out_patterns=("transfer {o} to a new team", "reassign {o} to other people"),
            steps=("open Teams", "drag the card", "drop it over there"),
            outcome="Their open tasks follow them there.",
        ),
    ),
    Siblings(
        objects=("my data", "my projects", "all my records"),
        held_out_objects=("my information", "the contents of my workspace"),
        first=Topic(
            goal="export your data",
            patterns=("export {o}", "download {o}", "save a copy of {o}"),
            held_out_patterns=("get {o} out of the app", "pull {o} onto my computer"),
            steps=("open Settings", "press Export", "wait for the email"),
            outcome="The file holds everything you own.",
        ),
        second=Topic(
            goal="import your data",
            patterns=("import {o}", "upload {o}", "load {o} from a file"),
            held_out_patterns=("bring {o} in from another tool", "move {o} over from a spreadsheet"),
            steps=("open Uploads", "press Import", "match all the columns"),
            outcome="Nothing that exists is ever overwritten.",
        ),
    ),
    Siblings(
        objects=("a backup", "a snapshot", "a safety copy"),
        held_out_objects=("a spare copy", "a saved version"),
        first=Topic(
            goal="create a backup",
            patterns=("create {o}", "make {o}", "start {o} by hand"),
            held_out_patterns=("take {o} right now", "produce {o}"),
            steps=("open Backups", "press Save now", "wait a short while"),
            outcome="You can keep working during that.",
        ),
        second=Topic(
            goal="restore a backup",
            patterns=("restore {o}", "go back to {o}", "recover my work from {o}"),
            held_out_patterns=("roll back to {o}", "return everything to {o}"),
            steps=("open History", "select a day", "press the Restore button"),
            outcome="Everybody is signed out until then.",
        ),
    ),
    Siblings(
        objects=("my plan", "my subscription", "our account plan"),
        held_out_objects=("my membership", "our paid package"),
        first=Topic(
            goal="upgrade your plan",
            patterns=("upgrade {o}", "move {o} to a higher tier", "get more seats on {o}"),
            held_out_patterns=("expand {o}", "raise {o} to the next level"),
            steps=("open Billing", "compare the plans", "confirm a bigger one"),
            outcome="The new seats are ready immediately.",
        ),
        second=Topic(
            goal="cancel your plan",
            patterns=("cancel {o}", "end {o}", "stop {o} from renewing"),
            held_out_patterns=("terminate {o}", "let {o} run out"),
            steps=("open Account", "scroll right down", "press End at renewal"),
            outcome="You keep access until that day.",
        ),
    ),
    Siblings(
        objects=("an invoice", "a bill", "the latest invoice"),
        held_out_objects=("a receipt", "our monthly bill"),
        first=Topic(
            goal="download an invoice",
            patterns=("download {o}", "get a copy of {o}", "find {o} as a PDF"),
            held_out_patterns=("print {o}", "fetch {o} for my files"),
            steps=("open Invoices", "choose the month", "click the blue arrow"),
            outcome="The PDF opens in another tab.",
        ),
        second=Topic(
            goal="correct an invoice",
            patterns=("correct the address on {o}", "change the company name on {o}", "add a tax number to {o}"),
            held_out_patterns=("fix the details on {o}", "put our new office on {o}"),
            steps=("open Company", "edit the details", "press Save and reissue"),
            outcome="The old number stays the same.",
        ),
    ),
    Siblings(
        objects=("a credit card", "a payment card", "our company card"),
        held_out_objects=("a bank card", "a payment method"),
        first=Topic(
            goal="add a card",
            patterns=("add {o}", "pay with {o}", "register {o}"),
            held_out_patterns=("key in {o}", "use {o} for our payments"),
            steps=("open Payment", "press New card", "type its long number"),
            outcome="We charge it on the first.",
        ),
        second=Topic(
            goal="remove a card",
            patterns=("remove {o}", "delete {o}", "take {o} off the account"),
            held_out_patterns=("get rid of {o}", "stop paying with {o}"),
            steps=("open Wallet", "click its dots", "choose Forget this one"),
            outcome="Another one must be there already.",
        ),
    ),
    Siblings(
        objects=("a discount code", "a voucher", "a coupon"),
        held_out_objects=("a promo code", "a gift code"),
        first=Topic(
            goal="redeem a discount code",
            patterns=("use {o}", "redeem {o}", "enter {o}"),
            held_out_patterns=("apply {o}", "cash in {o}"),
            steps=("open Checkout", "click Have one", "type it without spaces"),
            outcome="The price drops before you pay.",
        ),
        second=Topic(
            goal="earn a discount code",
            patterns=("get {o}", "ask for {o}", "find {o}"),
            held_out_patterns=("obtain {o}", "receive {o}"),
            steps=("open Rewards", "invite a friend", "copy what appears there"),
            outcome="It works for one whole year.",
        ),
    ),
    Siblings(
        objects=("notifications", "email alerts", "reminders"),
        held_out_objects=("push messages", "pings from the app"),
        first=Topic(
            goal="turn alerts off",
            patterns=("turn off {o}", "mute {o}", "stop getting {o}"),
            held_out_patterns=("silence {o}", "have a day without {o}"),
            steps=("click the bell", "choose Quiet hours", "pick how many hours"),
            outcome="Urgent calls still come through then.",
        ),
        second=Topic(
            goal="turn alerts on",
            patterns=("turn on {o}", "enable {o}", "start getting {o}"),
            held_out_patterns=("activate {o}", "hear {o} again"),
            steps=("open your profile", "choose Active channels", "switch them on again"),
            outcome="A test message arrives right away.",
        ),
    ),
    Siblings(
        objects=("the daily summary", "the weekly digest", "my morning email"),
        held_out_objects=("the weekly roundup", "my overview email"),
        first=Topic(
            goal="reschedule the summary",
            patterns=("change the time of {o}", "get {o} later in the day", "schedule {o}"),
            held_out_patterns=("set when {o} arrives", "delay {o} by an hour"),
            steps=("open Digest", "click the clock", "choose day and hour"),
            outcome="It follows your own time zone.",
        ),
        second=Topic(
            goal="tailor the summary",
            patterns=("change what is in {o}", "pick the topics of {o}", "leave projects out of {o}"),
            held_out_patterns=("decide what {o} covers", "customize {o}"),
            steps=("open Follows", "tick some projects", "leave out the rest"),
            outcome="Empty ones are skipped every time.",
        ),
    ),
    Siblings(
        objects=("a document", "a page", "a file"),
        held_out_objects=("a note", "a report"),
        first=Topic(
            goal="share a document",
            patterns=("share {o}", "send {o} to a client", "let others see {o}"),
            held_out_patterns=("give other people access to {o}", "show {o} to a guest"),
            steps=("press Share", "copy the link", "send it to them"),
            outcome="They need no account for that.",
        ),
        second=Topic(
            goal="unshare a document",
            patterns=("stop sharing {o}", "make {o} private", "hide {o} from others"),
            held_out_patterns=("close {o} to the public", "take back access to {o}"),
            steps=("press Access", "click Reset all", "keep it for yourself"),
            outcome="Links from before stop working immediately.",
        ),
    ),
    Siblings(
        objects=("a board", "a project", "a template"),
        held_out_objects=("a roadmap", "a shared folder"),
        first=Topic(
            goal="lock a board",
            patterns=("lock {o}", "protect {o} from changes", "make {o} read only"),
            held_out_patterns=("freeze {o}", "keep people from editing {o}"),
            steps=("click the padlock", "choose Owners only", "close the small window"),
            outcome="Everyone else can still read it.",
        ),
        second=Topic(
            goal="unlock a board",
            patterns=("unlock {o}", "allow changes to {o}", "make {o} editable"),
            held_out_patterns=("open {o} up for editing", "lift the protection of {o}"),
            steps=("open its menu", "choose All members", "press the green key"),
            outcome="From then on anyone may write.",
        ),
    ),
    Siblings(
        objects=("a change", "an edit", "a mistake"),
        held_out_objects=("a wrong edit", "an accidental change"),
        first=Topic(
            goal="undo a change",
            patterns=("undo {o}", "reverse {o}", "take back {o}"),
            held_out_patterns=("revert {o}", "cancel out {o}"),
            steps=("press Control Z", "repeat if needed", "check the page again"),
            outcome="Up to fifty steps are kept.",
        ),
        second=Topic(
            goal="inspect a change",
            patterns=("see who made {o}", "find out when {o} happened", "look up {o} in the history"),
            held_out_patterns=("trace {o}", "discover the author of {o}"),
            steps=("open the log", "hover the line", "read name and time"),
            outcome="Older ones hide under the arrow.",
        ),
    ),
    Siblings(
        objects=("a deleted task", "a deleted page", "an item in the trash"),
        held_out_objects=("something I deleted", "a trashed task"),
        first=Topic(
            goal="restore a deleted item",
            patterns=("restore {o}", "get {o} back", "recover {o}"),
            held_out_patterns=("rescue {o}", "return {o} to its place"),
            steps=("open Trash", "select the item", "press Put it back"),
            outcome="All its files return as well.",
        ),
        second=Topic(
            goal="erase a deleted item",
            patterns=("delete {o} forever", "erase {o} for good", "clear {o} completely"),
            held_out_patterns=("wipe {o} permanently", "destroy {o}"),
            steps=("open Storage", "tick the boxes", "press Shred for good"),
            outcome="Nobody can bring it back afterwards.",
        ),
    ),
    Siblings(
        objects=("my password", "my login password", "the password of my account"),
        held_out_objects=("my passcode", "my sign-in password"),
        first=Topic(
            goal="change your password",
            patterns=("change {o}", "update {o}", "replace {o}"),
            held_out_patterns=("renew {o}", "swap {o} for a new one"),
            steps=("open Security", "type the old one", "enter a new one twice"),
            outcome="Use twelve or more characters here.",
        ),
        second=Topic(
            goal="recover your password",
            patterns=("recover {o}", "get in without {o}", "reset {o} that I forgot"),
            held_out_patterns=("log in when I lost {o}", "sign in after forgetting {o}"),
            steps=("press Forgot", "read our short email", "follow the link inside it"),
            outcome="That link works for one hour.",
        ),
    ),
    Siblings(
        objects=("two-step login", "the login code", "the phone check"),
        held_out_objects=("two-step verification", "the second login step"),
        first=Topic(
            goal="enable two-step login",
            patterns=("turn on {o}", "set up {o}", "start using {o}"),
            held_out_patterns=("activate {o}", "protect my account with {o}"),
            steps=("open Devices", "add your phone", "scan the square code"),
            outcome="Keep the printed codes somewhere safe.",
        ),
        second=Topic(
            goal="disable two-step login",
            patterns=("turn off {o}", "disable {o}", "stop using {o}"),
            held_out_patterns=("deactivate {o}", "do without {o}"),
            steps=("open Logins", "choose Password only", "enter one last code"),
            outcome="Your account is less safe then.",
        ),
    ),
    Siblings(
        objects=("my profile picture", "my photo", "my avatar"),
        held_out_objects=("my portrait", "my picture"),
        first=Topic(
            goal="change your picture",
            patterns=("change {o}", "upload {o}", "set {o}"),
            held_out_patterns=("swap {o}", "put up {o}"),
            steps=("click your initials", "drop an image", "drag the round frame"),
            outcome="Square ones look best of all.",
        ),
        second=Topic(
            goal="remove your picture",
            patterns=("remove {o}", "delete {o}", "hide {o}"),
            held_out_patterns=("take down {o}", "get rid of {o}"),
            steps=("open your profile", "point at it", "click the small cross"),
            outcome="Your initials appear in its place.",
        ),
    ),
    Siblings(
        objects=("my account", "the app", "my screens"),
        held_out_objects=("my workspace", "the whole site"),
        first=Topic(
            goal="set your language",
            patterns=("change the language of {o}", "translate {o}", "see {o} in German"),
            held_out_patterns=("have {o} in French", "read {o} in my own tongue"),
            steps=("open Language", "choose your own", "reload the whole page"),
            outcome="Emails to you change as well.",
        ),
        second=Topic(
            goal="set your timezone",
            patterns=("change the time zone of {o}", "fix the clock in {o}", "set {o} to local time"),
            held_out_patterns=("correct the hours in {o}", "adjust {o} after a long flight"),
            steps=("open Region", "find your city", "save it with Enter"),
            outcome="Every due date is shown accordingly.",
        ),
    ),
    Siblings(
        objects=("the onboarding checklist", "the setup list", "the list of first steps"),
        held_out_objects=("the welcome checklist", "the getting started list"),
        first=Topic(
            goal="open the checklist",
            patterns=("open {o}", "find {o}", "continue {o}"),
            held_out_patterns=("resume {o}", "return to {o}"),
            steps=("click the rocket", "pick a step", "watch the short film"),
            outcome="Each step takes about two minutes.",
        ),
        second=Topic(
            goal="hide the checklist",
            patterns=("hide {o}", "skip {o}", "close {o}"),
            held_out_patterns=("dismiss {o}", "make {o} disappear"),
            steps=("find its corner", "click the arrow", "choose Not this week"),
            outcome="You find it under Help later.",
        ),
    ),
    Siblings(
        objects=("the sample project", "the example board", "the demo tasks"),
        held_out_objects=("the practice project", "the example data"),
        first=Topic(
            goal="load the sample project",
            patterns=("add {o}", "load {o}", "try {o}"),
            held_out_patterns=("play with {o}", "get {o} into my workspace"),
            steps=("open Help", "choose Examples", "press Copy to me"),
            outcome="Break whatever you like in it.",
        ),
        second=Topic(
            goal="clear the sample project",
            patterns=("remove {o}", "clear {o}", "delete {o}"),
            held_out_patterns=("throw out {o}", "clean up {o}"),
            steps=("open Archive", "select Samples", "press Drop all content"),
            outcome="Your own projects are never touched.",
        ),
    ),
    Siblings(
        objects=("a task", "an item", "a ticket"),
        held_out_objects=("a work item", "a job"),
        first=Topic(
            goal="assign a task",
            patterns=("assign {o}", "give {o} to a teammate", "hand over {o}"),
            held_out_patterns=("pass on {o}", "put a person in charge of {o}"),
            steps=("open it", "click the face", "pick the right name"),
            outcome="They are told about it immediately.",
        ),
        second=Topic(
            goal="schedule a task",
            patterns=("set a due date for {o}", "give {o} a deadline", "plan {o} for a day"),
            held_out_patterns=("put a date on {o}", "say when {o} must be ready"),
            steps=("hover it", "click the date", "choose a free day"),
            outcome="It then shows in the calendar.",
        ),
    ),
    Siblings(
        objects=("a task", "a card", "a checklist item"),
        held_out_objects=("a chore", "an assignment"),
        first=Topic(
            goal="complete a task",
            patterns=("complete {o}", "mark {o} as done", "finish {o}"),
            held_out_patterns=("tick off {o}", "report {o} as ready"),
            steps=("find it", "click the circle", "see it turn green"),
            outcome="It moves to Done by itself.",
        ),
        second=Topic(
            goal="reopen a task",
            patterns=("reopen {o}", "mark {o} as not done", "start {o} again"),
            held_out_patterns=("revive {o}", "bring {o} back to life"),
            steps=("open Done", "take its card", "drag it back left"),
            outcome="Dates and notes are all kept.",
        ),
    ),
    Siblings(
        objects=("my calendar", "my work calendar", "the team calendar"),
        held_out_objects=("my schedule", "my agenda"),
        first=Topic(
            goal="connect a calendar",
            patterns=("connect {o}", "link {o}", "sync {o}"),
            held_out_patterns=("hook up {o}", "attach {o}"),
            steps=("open Apps", "press Connect", "sign in over there"),
            outcome="Events show up within an hour.",
        ),
        second=Topic(
            goal="disconnect a calendar",
            patterns=("disconnect {o}", "unlink {o}", "stop syncing {o}"),
            held_out_patterns=("detach {o}", "cut the tie to {o}"),
            steps=("open Links", "press Unplug", "answer the question Yes"),
            outcome="Old events stay where they are.",
        ),
    ),
    Siblings(
        objects=("an API key", "an access token", "a key for scripts"),
        held_out_objects=("a developer key", "a secret token"),
        first=Topic(
            goal="create an API key",
            patterns=("create {o}", "generate {o}", "get {o}"),
            held_out_patterns=("issue {o}", "make myself {o}"),
            steps=("open Developer", "give a name", "press Generate and copy"),
            outcome="It is shown only this once.",
        ),
        second=Topic(
            goal="revoke an API key",
            patterns=("revoke {o}", "delete {o}", "disable {o}"),
            held_out_patterns=("invalidate {o}", "shut down {o}"),
            steps=("open Tokens", "find the row", "click Block and confirm"),
            outcome="Scripts that use it stop immediately.",
        ),
    ),
    Siblings(
        objects=("my tasks", "the task list", "a long board"),
        held_out_objects=("the backlog", "my items"),
        first=Topic(
            goal="filter a list",
            patterns=("filter {o}", "show only part of {o}", "narrow down {o}"),
            held_out_patterns=("see less of {o}", "pick out some of {o}"),
            steps=("click the funnel", "choose a label", "close the small panel"),
            outcome="Several labels may be combined there.",
        ),
        second=Topic(
            goal="sort a list",
            patterns=("sort {o}", "change the order of {o}", "put the newest first in {o}"),
            held_out_patterns=("arrange {o}", "rank {o} by date"),
            steps=("find the column", "click its head", "click once to flip"),
            outcome="Hold Shift for a second column.",
        ),
    ),
)
