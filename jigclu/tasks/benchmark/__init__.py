"""What pre-training costs, part by part, beside the published way of doing the same."""
