"""What a run watches itself for, and what it says and does when it sees it; docs/health.md is the page for users.

catalogue  every code: what it means, which threshold belongs to it, what to do
watch      the readings of steps and evaluations, judged against the thresholds
answers    the probe answers: whether they repeat themselves, whether they end
weights    updates and changes that a narrow type of weights rounds away
"""
