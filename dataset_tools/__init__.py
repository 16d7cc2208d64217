"""Images on disk: ingest, face and saliency detection, crops, buckets, captions, checks.

Every function works on a project folder or on plain values; nothing here knows of the browser.
cv2 and mediapipe are imported inside the functions that need them.
"""
