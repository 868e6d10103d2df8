"""Who may do what: principals with their roles (`principals`), API keys (`keys`), tokens of an identity provider (`tokens`), and
the gate that every request passes (`gate`). What happened at it stands in the audit and among security events."""
