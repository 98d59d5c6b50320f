"""Reading traces: from files or Jaeger, round by round, to who made a round slow. Needs no OpenTelemetry."""
