"""What could waste GPU hours, looked for before they are spent."""
