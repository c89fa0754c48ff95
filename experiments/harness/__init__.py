"""What every experiment shares: command line, record, report, timing."""
