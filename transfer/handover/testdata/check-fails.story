# source
- offer
Offer
- send-offer
> offer
> entry netns/state
- enter-offered

*handover.FailedError: migrate: preflight: the destination gave up: preflight: out of luck
the service was not touched
the copy: runs

# destination
- check
Store netns/state 5 "state"
Check {"what":"a service"} fails: out of luck
> abort

*handover.FailedError: migrate: preflight: out of luck
the copy: none
