"""What is there without anybody writing it: triggers for the events of executors and services in other languages."""
