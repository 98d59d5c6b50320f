"""`elastic bench churn`: real peers over an emulated wide-area network, and what happens when they come and go."""
