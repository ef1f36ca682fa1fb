# source
- offer
Offer
- send-offer
> offer
> entry netns/state
- enter-offered
> bye

checked, blackout 0s
the copy: runs

# destination
- check
Store netns/state 5 "state"
Check {"what":"a service"}
- send-ready
> ready
- enter-agreed

checked, blackout 0s
the copy: none
