"""What came of a campaign, for people and for assessors: tables, plots, one page, evidence that can be verified."""
